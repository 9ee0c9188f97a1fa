"""The local page to look at captions, rollouts and data. All but `page` and `server` knows nothing of Gradio."""
