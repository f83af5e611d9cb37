"""The noise schedule a checkpoint was trained with, out of its `scheduler_config.json`. Knows no family."""

from export import ExportError
from export.checkpoint import Checkpoint
from server.levels import Scheduler, noise_schedule


def trained_scheduler(checkpoint: Checkpoint, prediction_type: str | None) -> Scheduler:
    """`prediction_type` is the command line's, for a checkpoint that does not say its own. Raises `ExportError`."""
    config = checkpoint.json("scheduler/scheduler_config.json")
    said = config.get("prediction_type")
    if said is None and prediction_type is None:
        raise ExportError(
            f"{checkpoint.path('scheduler/scheduler_config.json')} does not say what the UNet predicts: give "
            "--prediction-type epsilon (as for Stable Diffusion 1.5 as published) or v_prediction"
        )
    if None not in (said, prediction_type) and said != prediction_type:
        raise ExportError(f"--prediction-type is {prediction_type!r} but the checkpoint's scheduler says {said!r}")
    wanted: dict[str, tuple[object, ...]] = {
        "trained_betas": (None,),
        "clip_sample": (None, False),
        "rescale_betas_zero_snr": (None, False),
    }
    for field, allowed in wanted.items():
        if config.get(field) not in allowed:
            raise ExportError(
                f"{checkpoint.path('scheduler/scheduler_config.json')}: {field} is {config[field]!r}, this version "
                f"knows {' or '.join(repr(value) for value in allowed)}"
            )
    scheduler = Scheduler(
        num_train_timesteps=int(config["num_train_timesteps"]),
        beta_start=float(config["beta_start"]),
        beta_end=float(config["beta_end"]),
        beta_schedule=config["beta_schedule"],
        prediction_type=str(said if prediction_type is None else prediction_type),
        steps_offset=int(config["steps_offset"]),
        set_alpha_to_one=bool(config["set_alpha_to_one"]),
        timestep_spacing=config.get("timestep_spacing"),
    )
    try:
        noise_schedule(scheduler)
    except ValueError as error:
        raise ExportError(f"{checkpoint.path('scheduler/scheduler_config.json')}: {error}") from error
    return scheduler
