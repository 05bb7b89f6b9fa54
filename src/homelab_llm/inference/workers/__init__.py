"""Workers: programs that run in processes of their own. Nothing here is imported by the daemon."""
