"""A reviewer who knows the ground truth."""

from pathlib import Path

from phrasebox.pipeline.dataset.folder import NumberedRows
from phrasebox.pipeline.dataset.reviews import REVIEWS_FILE, RegionKey, Review
from phrasebox.pipeline.evaluate.evaluation_set import open_evaluation_set, phrases_of
from phrasebox.pipeline.evaluate.metrics import is_right
from phrasebox.pipeline.evaluate.reviews import population_of, sample_for_review


def review(
    dataset: Path, truth: Path, count: int, *, reviewer: str = "ann", seed: int = 0, drags: bool = False
) -> int:
    """Answer for a sample of regions, as far as the ground truth knows them; return the number of answers.

    drags: Whether to drag the boxes of wrong regions.
    """
    judged = open_evaluation_set(dataset, truth)
    rows = NumberedRows(judged.dataset)
    lines = []
    for number, annotation_id in sample_for_review(population_of(judged.dataset), count, seed):
        (row,) = rows.rows_at([number], judged.dataset.columns)
        (annotation,) = [region for region in row["annotations"] if region["id"] == annotation_id]
        queries = judged.queries(row, phrases_of(row["annotations"]))
        matches = [query for query in queries if query.phrase == annotation["phrase"]]
        if not matches:
            continue
        boxes = [box for query in matches if query.target is not None for box in query.target.boxes_xywh_px]
        x, y, w, h = annotation["bbox"]
        answer = "absent" if not boxes else "right" if is_right((x, y, w, h), boxes) else "wrong"
        line = {
            **RegionKey.of(annotation)._asdict(),
            "reviewer": reviewer,
            "answer": answer,
            "seconds": 3.0,
        }
        if drags and answer == "wrong":
            line |= {"action": "box", "box_xywh_px": boxes[0]}
        lines.append(Review.model_validate(line).model_dump_json(exclude_none=True) + "\n")
    with (dataset / REVIEWS_FILE).open("a", encoding="utf-8") as file:
        file.writelines(lines)
    return len(lines)
