"""Draw which layers each token of a text runs, as a picture."""

from pathlib import Path

from matplotlib.figure import Figure

import layerroute


def main(
    router: str = "routers/mine",
    text: str = "def read_lines(path):\n    with open(path)",
    out: str = "routes.png",
) -> None:
    """Read a text with a routed model and draw it.

    Args:
        router: a folder that ``calibrate_and_save.py`` wrote.
        text: to read.
        out: the picture.
    """
    model, tokenizer = layerroute.load(router)
    ids = tokenizer(text, return_tensors="pt")["input_ids"].to(model.device)
    with layerroute.decisions(model) as collected:
        model(ids)
    (decision,) = collected
    run = decision.expensive[0].cpu()  # tokens × routed layers
    names = [tokenizer.decode([token]).replace("\n", "⏎") for token in ids[0].tolist()]

    figure = Figure(figsize=(1 + 0.28 * len(names), 1 + 0.22 * len(decision.sites)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(run.T, aspect="auto", cmap="PuOr_r", vmin=-0.2, vmax=1.2)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(decision.sites)), decision.sites)
    axes.set_title(f"{float(run.float().mean()):.0%} run (orange)")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    for name, count in zip(names, run.sum(dim=1).tolist(), strict=True):
        print(
            f"{name!r:16} {'█' * count}{'·' * (len(decision.sites) - count)} {count} of {len(decision.sites)}"
        )


if __name__ == "__main__":
    main()
