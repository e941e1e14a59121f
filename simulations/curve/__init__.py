"""`consilium-sim curve`: accuracy against labels per site, for ways of transfer and epsilons side by side."""
