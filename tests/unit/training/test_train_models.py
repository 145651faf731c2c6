import pytest
import torch

from layerroute.errors import UserError
from layerroute.recipe import load_recipe
from layerroute.training.hybrid import build_model, model_config, resolved_recipe
from tests.tiny import figures_of, write_recipe


def test_the_vocabulary_follows_the_data() -> None:
    config = model_config({"hidden_size": 32, "num_attention_heads": 2}, 300, end_of_text=7)
    special = (config.eos_token_id, config.bos_token_id, config.pad_token_id)
    assert (config.vocab_size, *special) == (300, 7, 7, 7)
    assert model_config({"vocab_size": 320}, 300).vocab_size == 320
    with pytest.raises(UserError, match="vocab_size is 200, but the tokenizer has 300"):
        model_config({"vocab_size": 200}, 300)


def test_weights_depend_on_the_seed_alone() -> None:
    config = model_config({"hidden_size": 16, "num_attention_heads": 2}, 30)
    torch.manual_seed(5)
    one = build_model(config, seed=1).state_dict()
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(5)), (
        "the global state was used"
    )
    two, other = build_model(config, seed=1).state_dict(), build_model(config, seed=2).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_figures_on_the_meta_device_are_those_of_the_real_model() -> None:
    settings = {"hidden_size": 16, "num_attention_heads": 2}
    figures = figures_of(settings, vocabulary_size=30, context_length=8)
    real = build_model(model_config(settings, 30), seed=0)
    assert figures.total == sum(parameter.numel() for parameter in real.parameters())
    assert figures.flops.context_length == 8


def test_the_resolved_recipe_says_everything_and_reads_back(tmp_path) -> None:
    recipe = load_recipe(write_recipe(tmp_path))
    plain = resolved_recipe(recipe)
    assert plain["model"]["mlp_ratio"] == 4
    assert plain["model"]["routing"]["estimator"] == "gumbel_st"
    assert "vocab_size" not in plain["model"]  # it follows from the data
    assert plain["train"]["weight_decay"] == 0.1
    import yaml

    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(plain))
    assert resolved_recipe(load_recipe(again)) == plain
