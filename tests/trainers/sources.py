"""Trainers that are no package: some files of their repositories, by commit, on the Python path of another process.

They are fetched into the environment of `make trainers`, compared with their digests, and no part of phrasebox.
"""

import hashlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

LOADERS = Path(__file__).parent / "loaders"
ADDRESS = "https://raw.githubusercontent.com"
FOLDER = Path(sys.prefix) / "trainers"


@dataclass(frozen=True)
class Source:
    """repository  OWNER/NAME
    files       path -> SHA-256
    root        the folder of the repository that stands on the Python path
    made        paths of further files, without content: packages that import nothing more
    """

    repository: str
    commit: str
    files: Mapping[str, str]
    root: str = ""
    made: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return FOLDER / f"{self.repository.replace('/', '-')}-{self.commit[:8]}"

    def fetch(self) -> Path:
        """The folder for the Python path. Without a network the test is skipped, unless the files are there."""
        for path, digest in self.files.items():
            target = self.folder / path
            if not target.is_file():
                address = f"{ADDRESS}/{self.repository}/{self.commit}/{path}"
                try:
                    with urllib.request.urlopen(address, timeout=20) as answer:
                        content = answer.read()
                except OSError as error:
                    archive = f"https://github.com/{self.repository}/archive/{self.commit}.tar.gz"
                    pytest.skip(
                        f"{self.repository} cannot be fetched, {error}: unpack {archive} as {self.folder}"
                    )
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            assert hashlib.sha256(target.read_bytes()).hexdigest() == digest, f"{target} is another file"
        for path in self.made:
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_bytes(b"")
        return self.folder / self.root

    def load(self, loader: str, *arguments: object) -> Any:
        """What a program of `loaders/` prints as JSON in its last line."""
        return run_loader(loader, *arguments, paths=[self.fetch()])


def run_loader(loader: str, *arguments: object, paths: list[Path]) -> Any:
    """Run a program of `loaders/` with folders first on its Python path."""
    places = [*map(str, paths), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(LOADERS / f"{loader}.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


MDETR = Source(
    "ashkamath/mdetr",
    "ea09acc44ca067072c4b143b726447ee7ff66f5f",
    {
        "datasets/coco.py": "5a29134cc27b84f35ef3ec4397f4e05b7e0e2e9834a2eb70d48f54b0312eb61d",
        "datasets/mixed.py": "57dbfcb57fa03314e3e217d62fb2cbaf35a1ed686d13a66f46888b8e3eea04c0",
        "datasets/transforms.py": "db3f527c7034036379099d0fabf4a092d6c2eaa34e15911a652449fca3d9d6c4",
        "util/box_ops.py": "91539e425535f8f4dc18ca5cbecf7bbb5e110a7f3d32e50259232ed8423f0548",
        "util/misc.py": "9f56207b9c151576be82eef1f00a6ab7d4713a256ec5ea3fcdd4bceaa51a0d41",
    },
    made=("datasets/__init__.py", "util/__init__.py"),
)
OPEN_GROUNDINGDINO = Source(
    "longzw1997/Open-GroundingDino",
    "d248268ac9cab808d4aa2691f4a76972ec5d9ab4",
    {
        "datasets/odvg.py": "10ce7d66a8fef0eb132c836b8ec06d7718629bd391acb3b7102625174427f7ae",
        "datasets/transforms.py": "c7652cec14485fcc83be3c843935f34f3a5fd9e7e74347bce600466b323bf1ee",
        "util/box_ops.py": "fdeececcef00abef9ac077365b5eccede02362d033498a1e9381e068351cbbed",
        "util/misc.py": "821bf3b3a643a872981da5080b11bd35167c0c81ca3c34577f3b882ab6a866d5",
    },
    made=("datasets/__init__.py", "util/__init__.py"),
)
CLIPSELF = Source(
    "wusize/CLIPSelf",
    "1c7fe9c5c38d800903d4754a89d7a8fcc7977101",
    {
        "src/training/data.py": "4f366cac73e0c83e04a904364a1dddbf411fd3fae2f1a3c55a2dafde96c195d1",
        "src/training/coco_api.py": "b29b83a84411fafaa3a5f9cca465316623a5ac2ea5d01eac0197096d04af9495",
        "src/training/custom_transforms.py": "394e2f3752a2f08b74deae0a884460f290e920b1a88e7b8d163d9f23db814f7d",
        "src/training/utils.py": "01a66ecd63a018d3cce5de180d0418547f14287661321eb89440a1541b8daf5f",
        "src/open_clip/transform.py": "c47f1d23892cbc74ffc188736315e9b37a5af3a0d2908005d79a10348467297d",
        "src/open_clip/constants.py": "4289fac298908e2fb814ff84b4594ff49094a7eab074fed1b2ca6429339e923b",
    },
    root="src",
    made=tuple(f"src/{name}.py" for name in ("training/__init__", "open_clip/__init__")),
)
SAM3 = Source(
    "facebookresearch/sam3",
    "99d02f28c8d34610ab35559b72642b01f10fdb1e",
    {
        "sam3/eval/cgf1_eval.py": "ac9fb7ec0e0abe08261914311552fe36480853cd9532f166ae212bc3d31ac3e0",
        "sam3/train/data/coco_json_loaders.py": "5a11f1f571ac6902c6aebdd2d469a1ece4b507d4a62322cb5e2d4beea40349dc",
    },
    made=tuple(f"sam3/{name}__init__.py" for name in ("", "eval/", "train/", "train/data/")),
)
LLAMA_FACTORY = Source(
    "hiyouga/LLaMA-Factory",
    "ff6d4d12eeb035d6ce06805a5733dd7b29f2ac30",
    {
        "src/llamafactory/data/converter.py": "c596efb447fb50fc915f6aa5c4f228d5409fba83808e23015a1bcf3387a3ffbf",
        "src/llamafactory/data/data_utils.py": "4e25c8d0f44aef2dcfd454312b9b98ba98bfb0db99415b495c67f6883c1ac89f",
        "src/llamafactory/data/parser.py": "0770aa3771fbbea8629d351bdab6bf8126fcff7b68ca7d79e89a39484aa41bb8",
        "src/llamafactory/extras/constants.py": "f254685864d800bfc03bfed2029665d3147b3a7c66895170fd39e40ef2455471",
        "src/llamafactory/extras/logging.py": "c3ad0c9a97f2082d0cb95d2da0e761f3826c2a267238808a2865ce9433968cfe",
        "src/llamafactory/extras/misc.py": "609038e7619f95d2f7324296247a7faa324283618365e5508409dd403f53c517",
    },
    root="src",
    made=tuple(f"src/llamafactory/{name}__init__.py" for name in ("", "data/", "extras/")),
)
QWEN_DATA = "qwen-vl-finetune/qwenvl/data"
QWEN_VL = Source(
    "QwenLM/Qwen3-VL",
    "96588727e44c78b25ba03ea03b8e12f7e64fd0da",
    {
        f"{QWEN_DATA}/__init__.py": "a0b1adbda4da652031268d47a6b628fd04d89991efb37a05d03cf5c3562ea368",
        f"{QWEN_DATA}/data_processor.py": "2c5ca288731fa74cd33d5082de2b4fe2e5c869603d221351fdd3ad4753701265",
        f"{QWEN_DATA}/rope2d.py": "97c9f8f49a3a1f782f6dacea538e3032fadfe24e5b60a630d3ae62053250542c",
    },
    root="qwen-vl-finetune",
    made=("qwen-vl-finetune/qwenvl/__init__.py",),
)
LLAVA = Source(
    "haotian-liu/LLaVA",
    "c121f0432da27facab705978f83c4ada465e46fd",
    {
        "llava/constants.py": "05caa532060f61b30cada5ba23da0f4bf640c898298913f768653583482e5901",
        "llava/conversation.py": "5afd26fa231082cb6fdc100c3887d663f72d8c99a93dcdd285dac303ca72e45c",
        "llava/mm_utils.py": "5551c1a52ea5e7d6e4ae5ad5da430271b0cd648b044a9b812127a49f46895bcf",
        "llava/train/train.py": "f87eca266b79905df845efd6bc5e28a57fe10dd8eeaa8d08ea4de97d27ad7b06",
    },
    made=tuple(f"llava/{name}__init__.py" for name in ("", "model/", "train/")),
)
SIMPLETUNER_BOXES = "simpletuner/helpers/training/grounding"
SIMPLETUNER = Source(
    "bghira/SimpleTuner",
    "bc8e6ab7738ce457a2ed8eb2d26cadd91c6442cb",
    {
        f"{SIMPLETUNER_BOXES}/collate.py": "483db1fdeeb2379ea61e3ee8c801291dffa0c4ae87582edf85b5626f445aab0d",
        f"{SIMPLETUNER_BOXES}/metadata.py": "1fd882519946a71267de84e212977a371ea32df444dbb366007c28e0eb790c71",
        f"{SIMPLETUNER_BOXES}/types.py": "696a2f9ea9f9522af9860a28d8e8ab9dfd337ceec9da250ffe7d43b13cb40141",
    },
    made=tuple(
        f"simpletuner/{name}__init__.py"
        for name in ("", "helpers/", "helpers/utils/", "helpers/training/", "helpers/training/grounding/")
    ),
)
