"""What runs: the training loop, evaluation, prediction and the pipeline of stages."""
