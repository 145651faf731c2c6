"""Calibrate a router for a pretrained model, save it, and open it again. A few minutes on a CPU; no gradients."""

import layerroute


def main(
    name: str = "smollm2-135m", folder: str = "routers/mine", tokens: int = 4096, **settings: object
) -> None:
    """Calibrate on text of this machine.

    Args:
        name: a model: ``smollm2-135m``, a folder, or a name on the hub.
        folder: where the router is written: a few megabytes, without the base.
        tokens: to calibrate on; more make a better router.
        settings: of ``layerroute.calibrate``.
    """
    model, tokenizer = layerroute.load(name)
    calibration = layerroute.calibrate(model, tokenizer, budget=0.35, tokens=tokens, **settings)
    print(calibration)
    print(f"\n{calibration.skipped:.0%} of the MLPs skipped for {calibration.cost:+.3f} nats per token")
    calibration.save(folder)

    routed, tokenizer = layerroute.load(folder)
    text = layerroute.generate(routed, tokenizer, "def read_lines(path):", max_new_tokens=32)
    print(text.coloured)
    print("layers run by each token:", text.layers_run)


if __name__ == "__main__":
    main()
