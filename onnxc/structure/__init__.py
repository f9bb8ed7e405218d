"""Smaller graphs: passes that were named do as they were told, others are tried where a plan says that they pay."""
