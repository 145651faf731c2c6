"""Train a small model from nothing whose tokens choose between Gated DeltaNet and softmax attention."""

import ast
from pathlib import Path

import torch

import layerroute
from layerroute.objectives import switch_loss


def main(steps: int = 200, length: int = 128, hidden: int = 128, folder: str = "runs/hybrid") -> None:
    """Train on the bytes of one module of Python's library, then tell which tokens took softmax attention."""
    torch.manual_seed(0)
    config = layerroute.HybridConfig(
        vocab_size=256, hidden_size=hidden, num_attention_heads=2,
        layer_pattern=["gdn", "routed", "routed", "softmax"],
        routing={"estimator": "gumbel_st"},
    )  # fmt: skip
    model = layerroute.HybridForCausalLM(config).train()
    data = torch.tensor(list(Path(ast.__file__).read_bytes()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    for step in range(steps):
        starts = torch.randint(len(data) - length, (8,))
        ids = torch.stack([data[start : start + length] for start in starts])
        output = model(input_ids=ids, labels=ids)
        loss = output.loss + 0.01 * switch_loss(output.decision)  # so that both paths stay in use
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % max(1, steps // 5) == 0 or step == steps - 1:
            print(f"step {step}: {output.loss.item():.3f} nats per byte")

    model.eval()
    text = b"def visit(self, node):\n    return node"
    with torch.no_grad():
        decision = model(input_ids=torch.tensor([list(text)])).decision
    print("softmax attention, by site:", dict(zip(decision.sites, decision.rate().tolist(), strict=True)))
    took = zip(text.decode(), decision.expensive[0, :, 0].tolist(), strict=True)
    print("in capitals at the first of them:", "".join(one.upper() if wide else one for one, wide in took))
    model.save_pretrained(folder)  # AutoModelForCausalLM.from_pretrained opens it after `import layerroute`


if __name__ == "__main__":
    main()
