"""Classification over HTTP: a bounded batcher, an API with limits, and a page."""
