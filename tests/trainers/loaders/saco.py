"""SAM 3's evaluator and loaders: SACO COCO -> cgF1 of the pairs' own regions, and the loaders' queries."""

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

from sam3.eval.cgf1_eval import CGF1Evaluator
from sam3.train.data.coco_json_loaders import COCO_FROM_JSON, SAM3_EVAL_API_FROM_JSON_NP

saco, coco = sys.argv[1:]
content = json.loads(Path(saco).read_text())
fields = ("image_id", "category_id", "bbox", "segmentation")
results = [{**{key: entry[key] for key in fields}, "score": 0.9} for entry in content["annotations"]]
shown = {entry["image_id"] for entry in results}
absent = [{**results[0], "image_id": pair["id"]} for pair in content["images"] if pair["id"] not in shown]
figures = {}
for name, predictions in (("right", results), ("and absent", results + absent)):
    with (
        tempfile.NamedTemporaryFile("w", suffix=".json") as file,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        json.dump(predictions, file)
        file.flush()
        evaluated = CGF1Evaluator(gt_path=[saco], verbose=False, iou_type="segm").evaluate(file.name)
    figures[name] = {key: float(value) for key, value in evaluated.items()}
loader = COCO_FROM_JSON(coco, include_negatives=False)
queries = []
for datapoint in loader.getDatapointIds():
    found, annotations = loader.loadQueriesAndAnnotationsFromDatapoint(datapoint)
    queries += [(query["query_text"], len(query["object_ids_output"])) for query in found]
pairs = SAM3_EVAL_API_FROM_JSON_NP(saco)
print(json.dumps({"figures": figures, "queries": queries, "pairs": len(pairs.getDatapointIds())}))
