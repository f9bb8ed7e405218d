"""What the command line takes, and what each verb does with it; no logic of compression."""
