"""The page, as a hub space runs it: python demo/app.py. `cat-seg app` has options."""

from cat_seg.app import build, launch

demo = build()

if __name__ == "__main__":
    launch(demo)
