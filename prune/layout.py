"""Where the neurons of a model lie in its named tensors.

One description serves the live model and the checkpoint on disk: both are a mapping from tensor
names to shapes. It covers separate, fused and stacked projections, matrices stored transposed, and
MLPs without a gate:

======== ============================================ ==============================
separate `mlp.gate_proj` [n, hidden], `up_proj`, `down_proj` [hidden, n]
fused    `mlp.gate_up_proj` [2n, hidden], gate first  phi3, glm, glm4
experts  `experts.E.*` each separate, or stacked as `experts.gate_up_proj` [E, 2n, hidden] and
         `experts.down_proj` [E, hidden, n]           mixtral, qwen, olmoe, deepseek
plain    `c_fc`/`c_proj` (transposed), `dense_h_to_4h`/`dense_4h_to_h`, `fc1`/`fc2`
======== ============================================ ==============================
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import ModelError
from .families import FAMILIES, SUPPORTED, Family, Part, width_entry

_ROLES = {
    "gate_proj": "gate", "up_proj": "up", "down_proj": "down", "gate_up_proj": "gate_up",
    "w1": "gate", "w3": "up", "w2": "down",
    "c_fc": "up", "c_proj": "down", "dense_h_to_4h": "up", "dense_4h_to_h": "down",
    "fc1": "up", "fc2": "down",
}  # fmt: skip
_TRANSPOSED = ("c_fc", "c_proj")
_NAME = re.compile(
    r"(?P<stem>(?:.*\.)?(?:layers|h)\.(?P<layer>\d+)\.)(?:mlp\.|block_sparse_moe\.)?"
    r"(?:(?P<experts>experts\.)(?:(?P<expert>\d+)\.)?|(?P<shared>shared_experts?\.))?"
    rf"(?P<matrix>{'|'.join(_ROLES)})(?:\.(?P<what>weight|bias))?"
)
NOT_TEXT = re.compile(r"vision|visual|audio|image")


@dataclass(frozen=True)
class Slot:
    """Where the neurons of one MLP lie in one tensor."""

    tensor: str
    axis: int
    """The axis that counts neurons, of the matrix (not of the stack that may hold it)."""
    start: int = 0
    """Where this MLP's neurons begin on that axis; beyond 0 for the `up` half of a fused pair."""
    expert: int | None = None
    """Place in a stacked tensor."""


@dataclass(frozen=True)
class MlpLayout:
    """One MLP (the dense one of a layer, or one expert) and where its neurons are stored."""

    index: int
    """Place in the list of all MLPs; the same in a `NeuronSet`."""
    layer: int
    part: Part
    expert: int | None
    width: int
    """Neurons."""
    stored: int
    """Neurons as stored; more than `width` where zero neurons pad it."""
    hidden: int
    slots: Mapping[str, Slot]
    """`gate` (not in plain MLPs), `up`, `down`, and `gate_bias`, `up_bias` where there are any."""
    width_key: str
    """The config's entry for the width."""
    multiple: int
    """What that entry is multiplied by."""
    norm: str | None = None
    """Name of the weight of the norm before it."""

    @property
    def name(self) -> str:
        """How messages call it."""
        if self.part == "expert":
            return f"layer {self.layer} expert {self.expert}"
        return f"layer {self.layer}" + (" shared expert" if self.part == "shared" else "")

    @property
    def parameters_per_neuron(self) -> int:
        """Numbers that go when a neuron goes."""
        matrices = sum(role in ("gate", "up", "down") for role in self.slots)
        return matrices * self.hidden + (len(self.slots) - matrices)

    @property
    def group(self) -> tuple[int, Part]:
        """MLPs of one group must have one width: the experts of a layer are stacked."""
        return self.layer, self.part


@dataclass
class _Found:
    """The tensors of one MLP, by role."""

    matrices: dict[str, str] = field(default_factory=dict)
    biases: dict[str, str] = field(default_factory=dict)


def locate(
    shapes: Mapping[str, Sequence[int]],
    config: Any,
    true_widths: Sequence[int] | None = None,
) -> list[MlpLayout]:
    """Find every MLP of a model by the names and shapes of its tensors.

    Args:
        shapes: of all tensors, by name, of a live model or a checkpoint.
        config: the text model's Transformers config.
        true_widths: neurons by MLP where zero neurons pad some (see `surgery.pad`).

    Returns:
        MLPs by layer; within a layer experts by number, then the shared one.

    Raises:
        ModelError: the family is not supported, or tensors are missing or disagree.
    """
    kind = getattr(config, "model_type", "unknown")
    family = FAMILIES.get(kind)
    layers = int(getattr(config, "num_hidden_layers", 0))
    found: dict[tuple[int, int, int], _Found] = {}
    stems: set[str] = set()
    for name in shapes:
        match = _NAME.fullmatch(name)
        # Layers beyond the last (multi-token prediction) are not part of the language model.
        if match is None or NOT_TEXT.search(name) or int(match["layer"]) >= layers:
            continue
        if match["experts"] and match["what"] is None and match["expert"] is None:
            places = range(shapes[name][0])  # a stacked tensor
        elif match["experts"]:
            places = (int(match["expert"]),) if match["expert"] else ()
        else:
            places = (-1,)
        stems.add(match["stem"].removesuffix(f"{match['layer']}."))
        role = _ROLES[match["matrix"]]
        for place in places:
            key = (int(match["layer"]), 1 if match["shared"] else 0, place)
            mlp = found.setdefault(key, _Found())
            (mlp.biases if match["what"] == "bias" else mlp.matrices)[role] = name
    made = list(_layouts(found, shapes, config, kind, family))
    there = {mlp.layer for mlp in made}
    if there and family is not None and len(there) < layers:
        first = next(layer for layer in range(layers) if layer not in there)
        raise ModelError(
            f"layer {first} has no MLP in the weights "
            f"({len(there)} of {layers} layers have); the checkpoint is incomplete, fetch it again"
        )
    if not made or len(there) < layers or len(stems) != 1:
        raise ModelError(
            f"model family {kind!r}: {len({mlp.layer for mlp in made})} of {layers} layers have an "
            f"MLP that glulens can read; supported are {SUPPORTED} and others with separate "
            "gate_proj, up_proj and down_proj"
        )
    if true_widths is None:
        return made
    if len(true_widths) != len(made) or not all(
        0 < width <= mlp.stored for width, mlp in zip(true_widths, made, strict=True)
    ):
        raise ModelError(
            "the true widths that the config notes under 'glulens' do not fit the model's MLPs; "
            "take the entry 'glulens' out of config.json or fetch the checkpoint again"
        )
    return [replace(m, width=int(w)) for m, w in zip(made, true_widths, strict=True)]


def _layouts(
    found: Mapping[tuple[int, int, int], _Found],
    shapes: Mapping[str, Sequence[int]],
    config: Any,
    kind: str,
    family: Family | None,
) -> Iterator[MlpLayout]:
    for index, key in enumerate(sorted(found, key=lambda key: (key[0], key[1], key[2]))):
        layer, shared, place = key
        mlp = found[key]
        part: Part = "shared" if shared else "expert" if place >= 0 else "dense"
        roles = set(mlp.matrices)
        known = family is not None or (part == "dense" and roles == {"gate", "up", "down"})
        plain = family is not None and family.kind == "plain"
        whole = {"up", "down"} if plain else {"gate", "up", "down"}
        if not known or roles not in (whole, {"gate_up", "down"}):
            missing = sorted(whole - roles) if known else []
            raise ModelError(
                f"model family {kind!r}, layer {layer}: "
                + (f"no {' and no '.join(missing)} matrix" if missing else "its MLP is not known")
                + f"; supported are {SUPPORTED} and others with separate gate_proj, up_proj and "
                "down_proj"
            )
        yield _layout(index, layer, part, place, mlp, shapes, config, family or Family(norm=None))


def _layout(
    index: int,
    layer: int,
    part: Part,
    place: int,
    mlp: _Found,
    shapes: Mapping[str, Sequence[int]],
    config: Any,
    family: Family,
) -> MlpLayout:
    slots: dict[str, Slot] = {}
    sizes: dict[str, int] = {}
    hiddens: dict[str, int] = {}
    for role, name in mlp.matrices.items():
        shape = tuple(shapes[name])
        expert = place if len(shape) == 3 else None
        if len(shape) != 2 + (expert is not None):
            raise ModelError(f"{name}: shape {shape} is not a matrix; the weights are packed")
        # Linear layers store [out, in]; GPT-2's Conv1D stores [in, out].
        turned = any(f".{t}." in name for t in _TRANSPOSED)
        axis = int((role == "down") != turned)
        neurons, hidden = shape[-2:][axis], shape[-2:][1 - axis]
        if role == "gate_up":
            neurons //= 2
            slots["gate"] = Slot(name, axis, 0, expert)
            slots["up"] = Slot(name, axis, neurons, expert)
        else:
            slots[role] = Slot(name, axis, 0, expert)
        sizes[name], hiddens[name] = neurons, hidden
    if len(set(sizes.values())) > 1 or len(set(hiddens.values())) > 1:
        raise ModelError(
            f"layer {layer}: "
            + ", ".join(f"{n} {tuple(shapes[n])}" for n in mlp.matrices.values())
            + " disagree on the number of neurons; the checkpoint is damaged, fetch it again"
        )
    width = next(iter(sizes.values()))
    if not width:
        raise ModelError(f"layer {layer}: its MLP has no neurons; the checkpoint is damaged")
    _only_known(slots, mlp, shapes, width, getattr(config, "model_type", "unknown"))
    for role, name in mlp.biases.items():
        if role == "gate_up":
            slots["gate_bias"], slots["up_bias"] = Slot(name, 0), Slot(name, 0, width)
        elif role != "down":
            slots[f"{role}_bias"] = Slot(name, 0)
    key, multiple = width_entry(config, part)
    norm = None
    if family.norm is not None and getattr(config, "do_layer_norm_before", True):
        stem = re.match(rf".*?(?:layers|h)\.{layer}\.", slots["up"].tensor)
        named = f"{stem[0] if stem else ''}{family.norm}.weight"
        norm = named if named in shapes else None
    return MlpLayout(
        index=index,
        layer=layer,
        part=part,
        expert=place if part == "expert" else None,
        width=width,
        stored=width,
        hidden=next(iter(hiddens.values())),
        slots=dict(sorted(slots.items())),
        width_key=key,
        multiple=multiple,
        norm=norm,
    )


def _only_known(
    slots: Mapping[str, Slot],
    mlp: _Found,
    shapes: Mapping[str, Sequence[int]],
    width: int,
    kind: str,
) -> None:
    """Refuse an MLP with a further vector over its neurons (a norm, a scale): cutting would leave
    it too long."""
    stem = slots["down"].tensor.rpartition(".")[0].rpartition(".")[0] + "."
    if not stem.endswith("mlp."):
        return
    used = {*mlp.matrices.values(), *mlp.biases.values()}
    for name, shape in shapes.items():
        if name.startswith(stem) and name not in used and tuple(shape) == (width,):
            raise ModelError(
                f"model family {kind!r}: {name} also counts neurons, which glulens does not know; "
                f"supported are {SUPPORTED}"
            )
