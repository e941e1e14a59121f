"""The researcher's side: scenarios, engines, baselines, reports. Nothing here is private by itself."""
