"""The table of PEFT's methods: how each is asked for on the small models, and what cannot be saved.

A method joins the walk of ``test_walk_adapters.py`` by a line here and its name in ``skipping.adapters.METHODS``.
"""

import peft

_TARGETS = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
_SQUARE = {"target_modules": ["q_proj", "o_proj"]}
_FEW = {**_TARGETS, "r": 4}


def lora(**changes):
    """LoRA's configuration, as a line of the table."""
    return peft.LoraConfig, {**_FEW, **changes}


METHODS = {
    "lora": lora(),
    "lora rslora": lora(use_rslora=True, lora_bias=True, rank_pattern={"v_proj": 2}),
    "lora dora": lora(use_dora=True),
    "lora gaussian": lora(init_lora_weights="gaussian"),
    "lora orthogonal": lora(init_lora_weights="orthogonal"),
    "lora pissa": lora(init_lora_weights="pissa"),
    "lora olora": lora(init_lora_weights="olora"),
    "lora tokens": lora(trainable_token_indices=[3, 5]),
    "lora embedding": lora(target_modules=["q_proj", "embed_tokens"]),
    "lora whole modules": lora(modules_to_save=["embed_tokens", "lm_head"]),
    "lora bias": lora(bias="all"),
    "lora some layers": lora(layers_to_transform=[2, 3]),
    "lora all linear": lora(target_modules="all-linear", exclude_modules=".*layerroute.*"),
    "adalora": (peft.AdaLoraConfig, {**_TARGETS, "total_step": 10}),
    "adamss": (peft.AdamssConfig, {**_TARGETS, "r": 8, "num_subspaces": 2}),
    "beft": (peft.BeftConfig, _TARGETS),
    "boft": (peft.BOFTConfig, {**_TARGETS, "boft_block_size": 4}),
    "c3a": (peft.C3AConfig, {**_SQUARE, "block_size": 8}),
    "deft": (peft.DeftConfig, _FEW),
    "delora": (peft.DeloraConfig, _FEW),
    "fourierft": (peft.FourierFTConfig, {**_TARGETS, "n_frequency": 20}),
    "frod": (peft.FrodConfig, _TARGETS),
    "glora": (peft.GloraConfig, _FEW),
    "gralora": (peft.GraloraConfig, _FEW),
    "hira": (peft.HiraConfig, _FEW),
    "hra": (peft.HRAConfig, _FEW),
    "ia3": (peft.IA3Config, {**_TARGETS, "feedforward_modules": ["down_proj"]}),
    "lily": (peft.LilyConfig, _FEW),
    "ln_tuning": (peft.LNTuningConfig, {"target_modules": ["input_layernorm"]}),
    "loha": (peft.LoHaConfig, _FEW),
    "lokr": (peft.LoKrConfig, _FEW),
    "miss": (peft.MissConfig, _FEW),
    "oft": (peft.OFTConfig, {**_TARGETS, "r": 0, "oft_block_size": 4}),
    "osf": (peft.OSFConfig, _TARGETS),
    "peanut": (peft.PeanutConfig, _FEW),
    "psoft": (peft.PsoftConfig, {**_FEW}),
    "pvera": (peft.PveraConfig, {**_SQUARE, "r": 4}),
    "randlora": (peft.RandLoraConfig, _FEW),
    "road": (peft.RoadConfig, {**_TARGETS, "group_size": 4}),
    "shira": (peft.ShiraConfig, _FEW),
    "supertuning": (peft.SupertuningConfig, _TARGETS),
    "tinylora": (peft.TinyLoraConfig, _TARGETS),
    "trainable_tokens": (
        peft.TrainableTokensConfig,
        {"token_indices": [3, 5], "target_modules": ["embed_tokens"]},
    ),
    "unilora": (peft.UniLoraConfig, _FEW),
    "vblora": (peft.VBLoRAConfig, {**_SQUARE, "r": 2, "num_vectors": 8, "vector_length": 4}),
    "vera": (peft.VeraConfig, {**_SQUARE, "r": 4}),
    "vera unsaved projection": (peft.VeraConfig, {**_SQUARE, "r": 4, "save_projection": False}),
    "waveft": (peft.WaveFTConfig, {**_TARGETS, "n_frequency": 20}),
}

REFUSED = {
    "lora pissa by chance": (lora(init_lora_weights="pissa_niter_4"), "pissa_niter_4"),
    "alora": (lora(alora_invocation_tokens=[3]), "alora_invocation_tokens"),
    "prefix": ((peft.PrefixTuningConfig, {"num_virtual_tokens": 3}), "PREFIX_TUNING"),
    "prompt": ((peft.PromptTuningConfig, {"num_virtual_tokens": 3}), "PROMPT_TUNING"),
    "p-tuning": ((peft.PromptEncoderConfig, {"num_virtual_tokens": 3}), "P_TUNING"),
    "lora in the router": (
        lora(target_modules=r".*(q_proj|layerroute\.routings\.0\.router\.layers\.0)"),
        "into the router itself",
    ),
}
