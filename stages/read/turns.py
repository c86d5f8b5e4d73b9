"""Captions in conversations: turns of the assistant, as LLaVA, ShareGPT4V and chat templates write them.

    {"conversations": [{"from": "human", "value": "<image>\\nDescribe it."}, {"from": "gpt", "value": "A red cup."}]}
    {"messages": [{"role": "user", "content": "Describe it."}, {"role": "assistant", "content": "A red cup."}]}

The content of a turn may also be a list of parts, of which those with a `text` count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from phrasebox.stages.contract.errors import RowFault, kind_of_value
from phrasebox.stages.contract.values import Json

TURN_FIELDS: Final = ("conversations", "messages")

CAPTION_ROLES: Final = (
    "gpt",
    "assistant",
)  # whose turns are captions, unless `input.turns` names other roles

ROLE_KEYS: Final = ("from", "role")
TEXT_KEYS: Final = ("value", "content")

_PLACEHOLDER: Final = re.compile(
    r"<(?:image|video)>\s*"
)  # stands for the picture, and is no word of the caption


def is_conversation(value: object) -> bool:
    """Return whether the value of a field is a list of turns.

    >>> is_conversation([{"from": "gpt", "value": "A red cup."}]), is_conversation(["A red cup."])
    (True, False)
    """
    return isinstance(value, list) and any(_role_of(turn) is not None for turn in value)


def captions_of_turns(name: str, turns: Sequence[Any], roles: Sequence[str]) -> list[Any]:
    """Return the texts of the turns of some roles, without placeholders of the image; null where a turn has no text.

    name: The field that holds the turns, for messages. Raise RowFault (bad_caption, no_caption).
    """
    captions: list[Any] = []
    for number, turn in enumerate(turns, start=1):
        role = _role_of(turn)
        if role is None:
            problem = (
                "has neither `from` nor `role`" if isinstance(turn, dict) else f"is {kind_of_value(turn)}"
            )
            raise RowFault("bad_caption", f"turn {number} of {name!r} {problem}, so nobody says it")
        if role in roles:
            captions.append(_text_of(name, number, turn))
    if not captions:
        present = " and ".join(dict.fromkeys(repr(_role_of(turn)) for turn in turns))
        raise RowFault(
            "no_caption",
            f"no turn of {name!r} is said by {' or '.join(roles)}, only by {present}: input.turns names whose turns "
            "are captions",
        )
    return captions


def _role_of(turn: object) -> str | None:
    role = next((turn[key] for key in ROLE_KEYS if turn.get(key)), None) if isinstance(turn, dict) else None
    return role if isinstance(role, str) else None


def _text_of(name: str, number: int, turn: Json) -> str:
    content = next((turn[key] for key in TEXT_KEYS if turn.get(key) is not None), None)
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        content = " ".join(part for part in parts if isinstance(part, str))
    if not isinstance(content, str):
        raise RowFault(
            "bad_caption", f"turn {number} of {name!r} holds {kind_of_value(content)}, expected text"
        )
    return _PLACEHOLDER.sub("", content)
