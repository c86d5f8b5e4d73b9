"""LLaVA's LazySupervisedDataset: IMAGES JSON -> entries of (answer, side of the padded image, the image's rows)."""

import json
import sys
import types

sys.modules["llava.train.llava_trainer"] = types.ModuleType(
    "llava.train.llava_trainer"
)  # distributed training
sys.modules["llava.train.llava_trainer"].LLaVATrainer = object

from llava.train.train import DataArguments, LazySupervisedDataset  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors  # noqa: E402
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast  # noqa: E402

images, path = sys.argv[1:]
side = 40  # as long as the images, so that the processor leaves them as they are
marks = ["<s>", "</s>", "<unk>"]
bytes_ = {
    token: number for number, token in enumerate([*marks, *sorted(pre_tokenizers.ByteLevel.alphabet())])
}
tokenizer = Tokenizer(models.BPE(vocab=bytes_, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, model_max_length=2048)
arguments = DataArguments(data_path=path, is_multimodal=True, image_folder=images, image_aspect_ratio="pad")
arguments.image_processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side)
arguments.mm_use_im_start_end = False
entries = []
for sample in LazySupervisedDataset(path, tokenizer, arguments):
    answer = tokenizer.decode([token for token in sample["labels"].tolist() if token >= 0])
    _, height, width = sample["image"].shape
    assert height == width == side
    rows = (
        (sample["image"].abs() > 0.02).any(dim=2).any(dim=0).nonzero().flatten()
    )  # the rest has the mean colour
    entries.append((answer.removesuffix("</s>").strip(), side, (int(rows[0]), int(rows[-1]) + 1)))
print()
print(json.dumps(entries))
