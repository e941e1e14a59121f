"""Private training on adapter weights: sampler, gradients, noise, step, features."""
