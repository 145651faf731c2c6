"""A router folder gives back the model that was saved, onto the base that it was made for, and nothing less."""

import json

import peft
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import layerroute.skipping.storage as storage
from layerroute.errors import UserError
from layerroute.routing import RoutingConfig, set_serve
from layerroute.skipping import (
    SkipConfig,
    add_router,
    executed,
    get_router,
    last_decision,
    load_pretrained,
    load_routed,
    load_router,
    read_router,
    router_disabled,
    save_router,
    set_router_trainable,
)
from layerroute.skipping.fingerprint import fingerprint
from layerroute.skipping.storage import restore_router
from tests.parity.contracts import tokens
from tests.parity.skipping_models import DEFAULTS, FAMILIES, VOCABULARY, plain, routed, sharpen

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}


@torch.no_grad()
def logits(model, ids):
    return model(ids, use_cache=False).logits


def with_adapter(model):
    torch.manual_seed(5)
    model = peft.get_peft_model(model, peft.LoraConfig(**LORA)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.2)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip(family, tmp_path):
    model = routed(
        family, granularity="per_layer", routing=RoutingConfig(router="linear", budget="quantile", rate=0.6)
    )
    with torch.no_grad():
        for routing in get_router(model).all_routings():
            routing.thresholds.value.fill_(0.7)
    ids = tokens(2, 11, VOCABULARY)
    expected = logits(model, ids)
    choice = last_decision(model).choice
    save_router(model, tmp_path / "router", notes={"budget": 0.4})
    assert {path.name for path in (tmp_path / "router").iterdir()} == {"router.json", "router.safetensors"}
    again = load_router(plain(family), tmp_path / "router")
    assert torch.equal(logits(again, ids), expected)
    assert torch.equal(last_decision(again).choice, choice)
    assert get_router(again).config == get_router(model).config
    assert read_router(tmp_path / "router").notes == {"budget": 0.4}
    assert not any(p.requires_grad for p in get_router(again).parameters())
    with router_disabled(again):
        assert torch.equal(logits(again, ids), plain(family)(ids).logits)


@pytest.mark.parametrize("trainable", [False, True])
def test_round_trip_with_an_adapter(trainable, tmp_path):
    model = with_adapter(routed("llama"))
    ids = tokens(2, 11, VOCABULARY)
    expected = logits(model, ids)
    save_router(model, tmp_path)
    base = plain("llama")
    again = load_router(base, tmp_path, trainable=trainable)
    assert again is base and type(again) is type(plain("llama")), "the model keeps its class"
    assert (logits(again.eval(), ids) - expected).abs().max() < 1e-5
    opened = {name for name, p in again.named_parameters() if p.requires_grad}
    assert any("lora" in name for name in opened) == trainable
    assert any("layerroute" in name for name in opened) == trainable
    # What was loaded in this form saves again.
    save_router(again, tmp_path / "second")
    third = load_router(plain("llama"), tmp_path / "second")
    assert (logits(third, ids) - expected).abs().max() < 1e-5


def test_a_trained_model_is_what_its_folder_says(tmp_path):
    model = with_adapter(routed("llama"))
    set_router_trainable(model)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = tokens(4, 12, VOCABULARY)
    for _ in range(3):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    expected = logits(model.eval(), ids)
    save_router(model, tmp_path)
    assert (logits(load_router(plain("llama"), tmp_path), ids) - expected).abs().max() < 1e-5


def test_another_base_is_refused(tmp_path):
    save_router(routed("llama"), tmp_path)
    with pytest.raises(UserError, match="embeddings or norms are not that base's"):
        load_router(plain("llama", seed=1), tmp_path)
    with pytest.raises(UserError, match="architecture"):
        load_router(plain("llama", intermediate_size=40), tmp_path)
    with pytest.raises(UserError, match="architecture"):
        load_router(plain("qwen3"), tmp_path)
    tuned = plain("llama")
    with torch.no_grad():
        tuned.model.layers[3].mlp.up_proj.weight.mul_(1.01)
    with pytest.raises(UserError, match="projection weights"):
        load_router(tuned, tmp_path)
    assert "layerroute" not in dict(tuned.named_modules())
    merged = with_adapter(plain("llama")).merge_and_unload()
    with pytest.raises(UserError, match="projection weights"):
        load_router(merged, tmp_path)
    with pytest.raises(UserError, match="plain base"):
        load_router(with_adapter(plain("llama")), tmp_path)


def test_fingerprints_see_the_base_alone():
    base = fingerprint(plain("llama"))
    assert fingerprint(routed("llama")) == base
    assert fingerprint(with_adapter(routed("llama")).get_base_model()) == base
    assert fingerprint(with_adapter(plain("llama"))) == base
    assert fingerprint(plain("llama").to(torch.bfloat16)) == base, "whatever dtype it is loaded in"
    assert fingerprint(plain("llama", seed=1)) != base
    quantised = plain("llama")
    projection = quantised.model.layers[0].mlp.up_proj
    projection.weight = torch.nn.Parameter(projection.weight.detach().char(), requires_grad=False)
    found = fingerprint(quantised)
    assert found["projections"] is None
    assert (found["config"], found["fixed"]) == (base["config"], base["fixed"])


def test_a_base_on_the_meta_device_has_no_fingerprint():
    with pytest.raises(UserError, match="not in memory"):
        fingerprint(plain("llama").to("meta"))


def test_missing_and_damaged_parts_are_errors(tmp_path):
    folder = tmp_path / "router"
    with pytest.raises(UserError, match=r"no router\.json"):
        load_router(plain("llama"), folder)
    with pytest.raises(UserError, match="no router"):
        save_router(plain("llama"), folder)
    save_router(with_adapter(routed("llama")), folder)

    def damaged(name: str, content: bytes | None, message: str) -> None:
        kept = (folder / name).read_bytes()
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        model = plain("llama")
        with pytest.raises(UserError, match=message):
            load_router(model, folder)
        assert "layerroute" not in dict(model.named_modules()), "nothing is left half-done"
        (folder / name).write_bytes(kept)

    damaged("router.safetensors", None, r"router\.safetensors is missing")
    damaged("router.safetensors", b"not a safetensors file", "damaged")
    damaged("adapter/adapter_model.safetensors", None, r"adapter/adapter_model\.safetensors is missing")
    damaged("adapter/adapter_config.json", None, r"adapter/adapter_config\.json is missing")
    damaged("router.json", b"{", "damaged")
    damaged("router.json", b"{}", "damaged")
    description = json.loads((folder / "router.json").read_text())
    damaged("router.json", json.dumps(description | {"format": 3}).encode(), "format 3")
    wrong = json.loads(json.dumps(description))
    wrong["skip"]["rank"] = 5
    damaged("router.json", json.dumps(wrong).encode(), "does not fit")
    wrong["skip"]["ranks"] = 5
    damaged("router.json", json.dumps(wrong).encode(), "Did you mean 'rank'")
    load_router(plain("llama"), folder)


@pytest.mark.parametrize("cut_off_in", ["save_adapters", "save_file", "replace_text"])
def test_a_save_that_is_cut_off_leaves_no_mixture_of_two_routers(cut_off_in, tmp_path, monkeypatch):
    save_router(routed("llama", rank=3), tmp_path)
    written = getattr(storage, cut_off_in)

    def cut_off(*arguments, **options):
        if cut_off_in != "replace_text":
            written(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, cut_off_in, cut_off)
        with pytest.raises(KeyboardInterrupt):
            save_router(routed("llama", rank=3), tmp_path)
    with pytest.raises(UserError, match="its save was cut off; make it again"):
        load_router(plain("llama"), tmp_path)
    save_router(routed("llama", rank=3), tmp_path)
    load_router(plain("llama"), tmp_path)


def test_keys_are_those_that_the_router_was_made_with(tmp_path):
    save_router(routed("llama", kv="project"), tmp_path)
    with pytest.raises(UserError, match="does not serve with kv: evict"):
        load_router(plain("llama"), tmp_path, kv="evict")
    load_router(plain("llama"), tmp_path, kv="project")


def test_execution_may_be_chosen_at_load(tmp_path):
    save_router(routed("llama"), tmp_path)
    assert get_router(load_router(plain("llama"), tmp_path, execution="masked")).execution == "masked"


def test_how_the_rate_is_served_and_spreads_travel_with_the_folder(tmp_path):
    model = routed("llama", granularity="per_layer")
    set_serve(model, "rate")
    with torch.no_grad():
        for index, routing in enumerate(get_router(model).all_routings()):
            routing.thresholds.spread.fill_(2.0 + index)
    ids = tokens(2, 40, VOCABULARY)
    expected = logits(model, ids)
    save_router(model, tmp_path / "new")
    again = load_router(plain("llama"), tmp_path / "new")
    assert get_router(again).config.serve == "rate"
    assert torch.equal(logits(again, ids), expected)
    by_threshold = load_router(plain("llama"), tmp_path / "new", serve="threshold")
    assert not torch.equal(logits(by_threshold, ids), expected)
    with pytest.raises(UserError, match="Did you mean 'rate'"):
        load_router(plain("llama"), tmp_path / "new", serve="rates")
    # Folders from before had neither.
    description = json.loads((tmp_path / "new" / "router.json").read_text())
    del description["skip"]["serve"]
    (tmp_path / "new" / "router.json").write_text(json.dumps(description))
    weights = load_file(tmp_path / "new" / "router.safetensors")
    weights = {name: value for name, value in weights.items() if not name.endswith("spread")}
    save_file(weights, tmp_path / "new" / "router.safetensors", metadata={"format": "pt"})
    old = load_router(plain("llama"), tmp_path / "new")
    assert get_router(old).config.serve == "threshold"
    assert all(routing.thresholds.spread.tolist() == [1.0] for routing in get_router(old).all_routings())
    assert torch.equal(logits(old, ids), logits(by_threshold, ids))
    restore_router(model, tmp_path / "new")
    assert all(routing.thresholds.spread.tolist() == [1.0] for routing in get_router(model).all_routings())


def test_only_routers_and_skip_paths_are_in_the_folder(tmp_path):
    save_router(routed("llama"), tmp_path)
    names = set(load_file(tmp_path / "router.safetensors"))
    assert all(name.startswith(("routings.", "skip_paths.")) for name in names)


def test_a_folder_loads_with_the_base_that_it_names(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    base = tmp_path / "base"
    plain("llama").save_pretrained(base)
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    ).save_pretrained(base)
    model = add_router(AutoModelForCausalLM.from_pretrained(base), SkipConfig(**DEFAULTS)).eval()
    sharpen(model)
    save_router(model, tmp_path / "router")
    again, tokenizer = load_routed(tmp_path / "router")
    ids = tokens(1, 9, VOCABULARY)
    assert torch.equal(logits(again, ids), logits(model, ids))
    assert len(tokenizer) == 1
    half, _ = load_routed(tmp_path / "router", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


# A base that has changed: more tokens, another place, weights elsewhere


def saved_base(folder, **changes):
    """A base and its tokenizer as people have them, in a folder."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain("llama", **changes).save_pretrained(folder)
    words = {f"w{i}": i for i in range(VOCABULARY)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0"))
    ).save_pretrained(folder)
    return folder


def grown(folder, tokens_added=5, tuned=True, order="first"):
    """The base with tokens that training has given a meaning, and a router, added before or after."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    if order == "last":
        add_router(model, SkipConfig(**DEFAULTS))
    model.resize_token_embeddings(VOCABULARY + tokens_added)
    if tuned:
        with torch.no_grad():
            model.get_input_embeddings().weight[VOCABULARY:].normal_()
            model.get_output_embeddings().weight[VOCABULARY:].normal_()
    if order == "first":
        add_router(model, SkipConfig(**DEFAULTS))
    sharpen(model)
    return model


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize("added", [5, -6])
def test_a_resized_vocabulary_comes_back(tmp_path, tie, order, added):
    base = saved_base(tmp_path / "base", tie_word_embeddings=tie)
    model = grown(base, added, tuned=added > 0, order=order)
    ids = tokens(2, 11, VOCABULARY + added)
    ids[:, 5] = VOCABULARY + added - 1
    expected = logits(model, ids)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"new{i}" for i in range(5)])
    save_router(model, tmp_path / "router", tokenizer=tokenizer)
    again, read = load_routed(tmp_path / "router")
    assert torch.equal(logits(again, ids), expected)
    assert len(read) == len(tokenizer)
    assert torch.equal(
        logits(load_router(plain("llama", tie_word_embeddings=tie), tmp_path / "router"), ids), expected
    )
    resized = plain("llama", tie_word_embeddings=tie)
    resized.resize_token_embeddings(VOCABULARY + added)
    assert torch.equal(logits(load_router(resized, tmp_path / "router"), ids), expected)
    wrong = plain("llama", tie_word_embeddings=tie)
    wrong.resize_token_embeddings(VOCABULARY + 9)
    with pytest.raises(UserError, match="resized to"):
        load_router(wrong, tmp_path / "router")
    with pytest.raises(UserError, match="embeddings or norms"):
        load_router(plain("llama", seed=1, tie_word_embeddings=tie), tmp_path / "router")


def test_added_tokens_with_an_adapter_and_without_a_tokenizer(tmp_path):
    base = saved_base(tmp_path / "base")
    model = peft.get_peft_model(
        grown(base), peft.LoraConfig(**LORA, trainable_token_indices=[3, VOCABULARY + 1])
    ).eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.2)
    ids = tokens(2, 11, VOCABULARY + 5)
    save_router(model, tmp_path / "router")
    with pytest.raises(UserError, match="no tokenizer was saved"):
        load_routed(tmp_path / "router")
    again = load_router(AutoModelForCausalLM.from_pretrained(base), tmp_path / "router")
    assert (logits(again, ids) - logits(model, ids)).abs().max() < 1e-5


def test_a_base_that_was_trained_is_not_called_by_its_old_name(tmp_path):
    base = saved_base(tmp_path / "base")
    model = add_router(AutoModelForCausalLM.from_pretrained(base), SkipConfig(**DEFAULTS)).eval()
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight.mul_(1.01)
    with pytest.raises(UserError, match=r"layers\.3\.mlp\.up_proj.*base='…'"):
        save_router(model, tmp_path / "router")
    assert not (tmp_path / "router").exists()
    with router_disabled(model):
        model.save_pretrained(tmp_path / "trained")
    save_router(model, tmp_path / "router", base=str(tmp_path / "trained"))
    ids = tokens(2, 9, VOCABULARY)
    again = load_router(AutoModelForCausalLM.from_pretrained(tmp_path / "trained"), tmp_path / "router")
    assert torch.equal(logits(again, ids), logits(model, ids))


def test_a_relative_base_is_found_from_everywhere(tmp_path, monkeypatch):
    (tmp_path / "work" / "elsewhere").mkdir(parents=True)
    saved_base(tmp_path / "work" / "base")
    monkeypatch.chdir(tmp_path / "work")
    model = add_router(load_pretrained("base")[0], SkipConfig(**DEFAULTS))
    sharpen(model)
    save_router(model, "routers/mine")
    assert read_router("routers/mine").base == "base"
    ids = tokens(2, 9, VOCABULARY)
    expected = logits(model, ids)
    monkeypatch.chdir(tmp_path / "work" / "elsewhere")
    assert torch.equal(logits(load_routed("../routers/mine")[0], ids), expected), (
        "as seen from the router folder"
    )
    folder = tmp_path / "alone"
    (tmp_path / "work" / "routers" / "mine").rename(folder)
    with pytest.raises(UserError) as told:
        load_routed(folder)
    assert str(folder / "base") in str(told.value)
    assert str(tmp_path / "work" / "elsewhere" / "base") in str(told.value)
    monkeypatch.chdir(tmp_path / "work")
    assert torch.equal(logits(load_routed(folder)[0], ids), expected), "as seen from the working folder"
    (tmp_path / "work" / "base").rename(folder / "base")
    assert torch.equal(logits(load_routed(folder)[0], ids), expected), "in the router folder"


def onto_disk(model, folder):
    disk_offload(model, folder, execution_device=torch.device("cpu"))


OFFLOADED = {
    "cpu": lambda model, folder: cpu_offload(model, execution_device=torch.device("cpu")),
    "cpu, buffers too": lambda model, folder: cpu_offload(
        model, execution_device=torch.device("cpu"), offload_buffers=True
    ),
    "disk": onto_disk,
}


@pytest.mark.parametrize("way", OFFLOADED)
@pytest.mark.parametrize("order", ["router first", "offloaded first", "loaded onto it"])
def test_an_offloaded_base_computes_saves_and_loads(tmp_path, way, order):
    reference = routed("llama", unit="attention+mlp")
    ids = tokens(2, 11, VOCABULARY)
    expected = logits(reference, ids)
    save_router(reference, tmp_path / "made")
    model = reference if order == "router first" else plain("llama")
    OFFLOADED[way](model, tmp_path / "weights")
    if order == "offloaded first":
        add_router(model, get_router(reference).config)
        get_router(model).load_state_dict(get_router(reference).state_dict())
    if order == "loaded onto it":
        load_router(model, tmp_path / "made")
    assert model.model.layers[3].mlp.up_proj.weight.is_meta, "the base stays where it was put"
    if order == "router first":  # saved before the first call
        again = load_router(plain("llama"), save_router(model, tmp_path / "early"))
        assert torch.equal(logits(again, ids), expected)
    for execution in ("auto", "sparse", "masked"):
        with executed(model, execution):
            assert (logits(model, ids) - expected).abs().max() < 1e-4
    assert not any(p.is_meta for p in get_router(model).parameters())
    again = load_router(plain("llama"), save_router(model, tmp_path / "router"))
    assert torch.equal(logits(again, ids), expected)


def test_a_device_map_with_layers_on_disk(tmp_path):
    saved_base(tmp_path / "base")
    places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    places |= {f"model.layers.{i}": "disk" if i in (2, 3, 4) else "cpu" for i in range(7)}
    save_router(routed("llama"), tmp_path / "router")
    ids = tokens(2, 11, VOCABULARY)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", device_map=places, offload_folder=tmp_path / "weights"
    ).eval()
    assert model.model.layers[3].mlp.up_proj.weight.is_meta
    load_router(model, tmp_path / "router")
    assert torch.equal(logits(model, ids), logits(routed("llama"), ids))
    assert not any(p.is_meta for p in get_router(model).parameters())
