"""``python -m nerf_bridge``: the same as the command ``nerf-bridge``."""

from nerf_bridge.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
