"""What session.py is made of: how kernels are timed, how a failure is told, which types numpy lacks."""
