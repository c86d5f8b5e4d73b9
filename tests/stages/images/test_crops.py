"""Crops show the pixels of their boxes."""

import numpy as np

from phrasebox.stages.images.crops import crop_regions

RGB = np.zeros((40, 80, 3), np.uint8)
RGB[:20, :40] = 100
RGB[20:, 40:] = 200


def test_a_crop_shows_its_box_alone_and_a_sliver_still_a_pixel() -> None:
    cut = crop_regions(RGB, [(0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0), (0.5, 0.0, 1.0, 0.5)], 8)
    assert cut.shape == (3, 8, 8, 3)
    assert [set(crop.ravel().tolist()) for crop in cut] == [{100}, {200}, {0}]
    cut = crop_regions(RGB, [(0.4999, 0.1, 0.4999, 0.1), (1.0, 1.0, 1.0, 1.0)], 4)
    assert cut[0].min() == cut[0].max() == 100
    assert cut[1].min() == cut[1].max() == 200
