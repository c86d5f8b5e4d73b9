"""Phrases of long captions against human mark-up, exact spans, and the links between them within a caption."""

from itertools import combinations

from benchmarks.photos.phrases import without_determiner
from phrasebox.stages.contract.records import Record, Sample
from phrasebox.stages.phrases.config import PhrasesConfig
from phrasebox.stages.phrases.groups import link_phrases
from phrasebox.stages.phrases.stage import PhrasesStage
from tests.stages.phrases.marked import f1_of, read_marked

MARKED = [*read_marked("long_captions.txt", r"\[(?P<number>\d+) (?P<words>[^\]]*)\]")]


def test_phrases_and_their_links_agree_with_the_mark_up_of_the_captions_for_the_report() -> None:
    """Links are pairs of phrases of one caption that name one object, among the phrases that the mark-up knows."""
    report = [marked for marked in MARKED if marked[0].startswith("report")]
    assert len(report) == 20
    stage = PhrasesStage(PhrasesConfig(max_phrases=1000))
    stage.setup()
    samples = [
        Sample(sample_id=caption, source="", captions=(caption.partition(": ")[2],))
        for caption, _ in report
    ]
    predicted = []
    linked = set()
    truly_linked = set()
    for (caption, objects), record in zip(
        report, stage.process(list(map(Record.start, samples))), strict=True
    ):
        name, _, text = caption.partition(": ")
        offset = len(name) + 2
        phrases = {
            without_determiner(caption, (phrase.start + offset, phrase.end + offset)): phrase
            for phrase in record.phrases
        }
        predicted.append(set(phrases))
        known = {span: phrase for span, phrase in phrases.items() if span in objects}
        groups = dict(zip(known, link_phrases([text], list(known.values())), strict=True))
        for first, second in combinations(known, 2):
            if groups[first] == groups[second]:
                linked.add((name, first, second))
            if objects[first] == objects[second]:
                truly_linked.add((name, first, second))
    assert f1_of([set(objects) for _, objects in report], predicted) >= 0.92
    assert f1_of([truly_linked], [linked]) >= 0.80
