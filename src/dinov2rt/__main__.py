"""`python -m dinov2rt`."""

from dinov2rt.cli import main

raise SystemExit(main())
