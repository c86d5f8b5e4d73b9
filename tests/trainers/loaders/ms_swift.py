"""An epoch of ms-swift's `swift sft`: MODEL IMAGES JSONL OUT -> the texts it learns, the losses of its steps."""

import json
import os
import sys
from pathlib import Path

model, images, path, out = sys.argv[1:]
settings = {"QWENVL_BBOX_FORMAT": "new", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
os.environ |= {**settings, "ROOT_IMAGE_DIR": images}

from swift import SftArguments  # noqa: E402
from swift.pipelines import SwiftSft  # noqa: E402
from swift.template.templates.qwen import Qwen2VLTemplate  # noqa: E402

# A number of Qwen's vocabulary, which is too large for a small model.
Qwen2VLTemplate.image_token_id = json.loads(Path(model, "config.json").read_text())["image_token_id"]

training = SwiftSft(
    SftArguments(
        model=model,
        model_type="qwen2_5_vl",
        template="qwen2_5_vl",
        dataset=[path],
        split_dataset_ratio=0.0,
        tuner_type="full",
        freeze_vit=False,
        torch_dtype="float32",
        attn_impl="eager",
        gradient_checkpointing=False,
        num_train_epochs=1,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=1,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        output_dir=out,
        use_hf=True,
        check_model=False,
    )
)
rows, _ = training.args.load_dataset()
texts = []
for row in rows:
    labels = training.template.encode(dict(row))["labels"]
    texts.append(training.template.tokenizer.decode([token for token in labels if token >= 0]))
losses = [step["loss"] for step in training.run()["log_history"] if "loss" in step]
print()
print(json.dumps({"texts": texts, "losses": losses}))
