"""Training in pure torch: plan, model, step, losses."""
