"""Calibrate a router, then train a LoRA adapter beside it, so that the model learns to live with what it skips."""

import ast
from pathlib import Path

import peft
import torch

import layerroute


def main(
    name: str = "smollm2-135m",
    folder: str = "routers/lora",
    steps: int = 20,
    length: int = 128,
    **settings: object,
) -> None:
    """Train LoRA on one module of Python's library; router and adapter are saved together."""
    model, tokenizer = layerroute.load(name)
    layerroute.calibrate(model, tokenizer, budget=0.35, **{"tokens": 4096, "own_text": 0.0, **settings})
    # The router is no place for adapters: name the modules that are.
    lora = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, lora).train()
    adapted.print_trainable_parameters()

    ids = torch.tensor(
        tokenizer(Path(ast.__file__).read_text(encoding="utf-8"))["input_ids"], device=model.device
    )
    windows = ids[: len(ids) // length * length].view(-1, length)
    optimizer = torch.optim.AdamW([value for value in adapted.parameters() if value.requires_grad], lr=5e-4)
    for step in range(steps):
        batch = windows[2 * step % len(windows) :][:2]
        loss = adapted(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: {loss.item():.3f} nats per token")

    layerroute.save(adapted.eval(), folder)  # peft's own save_pretrained would leave the router out
    again, tokenizer = layerroute.load(folder)
    print(layerroute.evaluate(again, tokenizer, "python-docs", windows=4, length=length).to_dict()["loss"])


if __name__ == "__main__":
    main()
