"""Is routing per token better than leaving out the same layers for all tokens? Judged at equal executed FLOPs."""

import layerroute


def main(
    name: str = "smollm2-135m",
    data: object = None,
    out: str = "static.png",
    tokens: int = 8192,
    **settings: object,
) -> None:
    """Calibrate a router and its static rivals in the same way, and compare them.

    Args:
        name: a model.
        data: text, as ``layerroute.calibrate`` takes it. Default: text of this machine.
        out: a picture of the comparison.
        tokens: to calibrate on; half as many judge.
        settings: of ``layerroute.calibrate``.
    """
    model, tokenizer = layerroute.load(name)
    controls = ("static_influence", "static_greedy", "random")
    calibration = layerroute.calibrate(
        model, tokenizer, data=data, budget=0.35, tokens=tokens, controls=controls, **settings
    )
    for row in calibration.table:
        if row["difference"] is None:  # it saves what routing does not reach, or is routing itself
            print(f"{row['arm']}: saves {row['saved']:.1%} of the FLOPs, {row['above_full']:+.3f} nats")
            continue
        told = "routing wins" if row["high"] < 0 else "routing loses" if row["low"] > 0 else "cannot be told"
        print(
            f"{row['arm']}: saves {row['saved']:.1%}; routing at its cost is {row['difference']:+.3f} nats from it "
            f"({row['low']:+.3f} to {row['high']:+.3f}): {told}"
        )
    print(calibration.verdict)
    calibration.figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main()
