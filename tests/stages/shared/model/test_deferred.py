"""What a model does not need is not imported with open_clip, and is there when something needs it all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

HEAVY = ("timm", "transformers", "torch._dynamo")


def loaded_after(code: str) -> set[str]:
    """What of HEAVY a fresh process has imported after some code."""
    program = f"{code}\nimport json, sys\nprint(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


BUILD = """
from stages.shared.model.config import ModelConfig
from stages.shared.model.load import load
load(ModelConfig(name="demo"), pack=True)
"""

EXPLAINERS = "from stages.explain import explainer_type; EXPLAINERS['grad_eclip']"

BY_ITSELF = """
from stages.shared.model.deferred import open_clip
import open_clip.model
"""

TIMM = """
from stages.shared.model.deferred import open_clip
from stages.shared.model.towers.plan import plan_of
config = open_clip.get_model_config("ViT-B-16-SigLIP")
assert plan_of(config).kind == "latent_pool"
import timm
tower = open_clip.timm_model.TimmModel("vit_tiny_patch16_224", 8, pool="token", proj="mlp")
assert isinstance(tower.trunk, timm.models.vision_transformer.VisionTransformer)
assert isinstance(tower.head.mlp, open_clip.timm_model.Mlp) and not isinstance(tower.trunk, open_clip.timm_model.Mlp)
"""

OPERATORS = """
import stages.shared.model.deferred, torch, torchvision
torch.use_deterministic_algorithms(True)
print(torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), [torch.tensor([[0.0, 0.0, 4.0, 4.0]])], 2).shape)
assert torchvision.ops.roi_align.__globals__["is_compile_supported"]("mps") is False
"""


@pytest.mark.parametrize("code", [BUILD, EXPLAINERS, BY_ITSELF], ids=["demo", "explainers", "open_clip"])
def test_a_model_of_open_clip_s_own_imports_no_other_library(code: str) -> None:
    assert loaded_after(code) == set()


def test_a_stand_in_is_replaced_when_it_is_used() -> None:
    assert "timm" in loaded_after(TIMM)
    assert "torch._dynamo" in loaded_after(OPERATORS)


def test_text_towers_of_transformers_are_built_through_stand_ins() -> None:
    pytest.importorskip("transformers")
    code = """
from stages.shared.model.deferred import open_clip
from open_clip import hf_model
import torch, transformers
config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
tower = hf_model.HFTextEncoder("", 4, config=config, pooler_type="cls_pooler", proj_type="linear").eval()
assert type(tower.transformer) is transformers.BertModel
assert isinstance(tower.transformer(torch.ones(1, 3).long()), hf_model.BaseModelOutputWithPoolingAndCrossAttentions)
assert tower(torch.ones(1, 3).long()).shape == (1, 4)
"""
    assert "transformers" in loaded_after(code)


def test_what_is_imported_already_is_taken_as_it_is() -> None:
    code = """
import timm, timm.layers
from stages.shared.model.deferred import open_clip
assert open_clip.timm_model.timm is timm and open_clip.timm_model.Mlp is timm.layers.Mlp
"""
    assert "timm" in loaded_after(code)
