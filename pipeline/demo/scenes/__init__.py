"""Drawn scenes with exact boxes, masks and captions: `make_scene` for one, `write_scenes` for a data set."""

from phrasebox.pipeline.demo.scenes.scene import Scene, SceneObject, make_scene, write_scenes

__all__ = ["Scene", "SceneObject", "make_scene", "write_scenes"]
