"""Train a router with transformers' own Trainer: the base is frozen, router and skip paths learn."""

import ast
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

import layerroute
from layerroute.objectives import quadratic_budget
from layerroute.routing import RoutingConfig
from layerroute.skipping import set_router_trainable


class RoutedTrainer(Trainer):
    """Cross-entropy, and a term that holds the share of tokens that run at 75 %."""

    def compute_loss(self, model, inputs, return_outputs=False, **more):
        """The loss of one batch."""
        with layerroute.decisions(model, graph=True) as collected:
            output = model(**inputs)
        loss = output.loss + 5.0 * quadratic_budget(collected[0], 0.75)
        return (loss, output) if return_outputs else loss


def main(
    name: str = "smollm2-135m", folder: str = "runs/trainer", steps: int = 50, length: int = 128
) -> None:
    """Train on the source text of one module of Python's library, and save the whole model."""
    model, tokenizer = layerroute.load(name)
    routing = RoutingConfig(router="linear", estimator="gumbel_st", rate=0.75)
    layerroute.add_router(
        model, layerroute.SkipConfig(unit="mlp", granularity="per_layer", rank=16, routing=routing)
    )
    model.requires_grad_(False)
    set_router_trainable(model)

    ids = torch.tensor(tokenizer(Path(ast.__file__).read_text(encoding="utf-8"))["input_ids"])
    windows = ids[: len(ids) // length * length].view(-1, length)
    settings = TrainingArguments(
        output_dir=folder, max_steps=steps, per_device_train_batch_size=2, learning_rate=1e-3,
        logging_steps=max(1, steps // 5), save_steps=steps, report_to=[], use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    data = [{"input_ids": window, "labels": window} for window in windows]
    trainer = RoutedTrainer(model=model, args=settings, train_dataset=data)
    trainer.train()
    trainer.save_model(f"{folder}/whole")  # base and router: save_pretrained of a routed model
    tokenizer.save_pretrained(f"{folder}/whole")

    again, tokenizer = layerroute.load(f"{folder}/whole")
    with layerroute.decisions(again) as collected:
        again(windows[:1].to(again.device))
    print(f"{float(collected[0].mean_rate()):.0%} of the MLPs run")


if __name__ == "__main__":
    main()
