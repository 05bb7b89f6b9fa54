"""The daemon as a service of this user: a systemd user unit, or a LaunchAgent. No root."""
