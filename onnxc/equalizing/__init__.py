"""Rewrites that change no answer in float and spare the rounding behind them: scales moved from where they hurt."""
