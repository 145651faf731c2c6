"""The last step of a run is always a curve point."""

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class FinalStepCallback(TrainerCallback):
    """Log the last step even where `log_every` does not divide it (the Trainer evaluates and saves there itself)."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        if state.global_step >= state.max_steps:
            control.should_log = True
        return control
