"""The digit scenes at a size for tests."""

ARGUMENTS = (
    "--config=configs/digit_scenes.py",
    "--config.model.detector.extras=()",
    "--config.model.detector.ratios=((1.5,),)",
    "--config.input.train_split=train[:48]",
    "--config.input.eval_split=test[:24]",
    "--config.batch_size=16",
    "--config.eval_batch_size=24",
    "--config.num_epochs=3",
    "--config.eval_every_epochs=1",
    "--config.log_every_steps=3",
)
