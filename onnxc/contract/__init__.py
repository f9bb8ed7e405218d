"""The contract of passes: what each kind must do (passes), is told (context), and proposes (candidates)."""
