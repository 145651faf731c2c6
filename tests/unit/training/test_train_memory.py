import pytest
import torch

from layerroute.precision import autocast
from layerroute.training.summary import estimate_memory


def saved_bytes(model, ids) -> int:
    """Bytes that the backward pass keeps, parameters aside; storage that several tensors share counts once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    held = []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    assert loss.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize(
    ("pattern", "settings"),
    [
        (["gdn"] * 4, {}),
        (["softmax"] * 4, {}),
        (["gdn", "routed", "routed", "softmax"], {}),
        (["gdn", "routed", "routed", "softmax"], {"routed_unit": "block"}),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_within_a_fifth_of_what_autograd_keeps(
    make_model, pattern, settings, precision
) -> None:
    model = make_model(
        layer_pattern=pattern, hidden_size=64, num_attention_heads=2, vocab_size=64, **settings
    ).train()
    ids = torch.randint(0, 64, (2, 128))
    estimate = estimate_memory(
        model.config, parameters=1, micro_batch=2, sequence_length=128, precision=precision
    )
    with autocast(precision, torch.device("cpu")):
        measured = saved_bytes(model, ids)
    assert estimate["activations"] + estimate["logits"] == pytest.approx(measured, rel=0.2)


def test_weights_gradients_and_moments_are_sixteen_bytes_a_parameter(make_model) -> None:
    config = make_model().config
    one, two = (
        estimate_memory(config, parameters=n, micro_batch=2, sequence_length=8, precision="bf16")
        for n in (0, 1000)
    )
    assert sum(two.values()) - sum(one.values()) == 16_000


def test_checkpointing_and_accumulation_take_less(make_model) -> None:
    config = make_model(layer_pattern=["gdn"] * 8).config
    plain = estimate_memory(config, parameters=0, micro_batch=4, sequence_length=64, precision="fp32")
    checkpointed = estimate_memory(
        config, parameters=0, micro_batch=4, sequence_length=64, precision="fp32", gradient_checkpointing=True
    )
    halved = estimate_memory(config, parameters=0, micro_batch=2, sequence_length=64, precision="fp32")
    assert checkpointed["activations"] < plain["activations"] / 3
    assert sum(halved.values()) == pytest.approx(sum(plain.values()) / 2)
