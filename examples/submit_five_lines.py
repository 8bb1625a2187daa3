"""Queue three jobs and wait for them; runs with the base install, without torch."""

from renderkiln.producer import RenderQueue

queue = RenderQueue()
batch = queue.submit_many({"prompt": f"a {color} star on a white background"} for color in ("red", "green", "blue"))
for result in queue.as_completed(batch):
    print(result.status.value, *(image.url for image in result.images))
