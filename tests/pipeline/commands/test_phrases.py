import json
from collections.abc import Iterator

from pipeline.commands.phrases import phrases_json
from stages.phrases.stage import PhrasesConfig


def test_phrases_json_reads_no_further_than_a_batch():
    read = []

    def captions() -> Iterator[str]:
        for caption in ("Two dogs.", "", "A photo of my cat"):
            read.append(caption)
            yield caption

    answers = phrases_json(captions(), PhrasesConfig(batch_size=2))
    lines = [next(answers)]
    assert len(read) == 2
    lines += answers
    assert json.loads(json.dumps(lines)) == [
        {"caption": "Two dogs.", "phrases": [{"text": "two dogs", "start": 0, "end": 8, "head": "dog"}]},
        {"caption": "", "phrases": [], "error": "no_caption: all captions are empty"},
        {"caption": "A photo of my cat", "phrases": [{"text": "cat", "start": 11, "end": 17, "head": "cat"}]},
    ]
