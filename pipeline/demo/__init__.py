"""Images that come with the package: synthetic scenes, which are drawn, and photographs."""
