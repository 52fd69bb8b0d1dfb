"""The four stages in memory, as one would write them in a notebook, on simulated slides."""

import tempfile

from stflow_graph import api as sg
from stflow_graph.simulation.cohort import simulate_cohort

with tempfile.TemporaryDirectory() as folder:
    root = simulate_cohort(folder + "/cohort", n_slides=4, n_spots=36, seed=1)  # or your own
    slides = [sg.Slide.from_hest(root, slide.id) for slide in root.slides]
    slides = sg.embed(slides, "efficientnet_lite0")
    model = sg.train(slides[1:], f"{root.path}/var_50genes.json", epochs=2, members=2)
    prediction = sg.sample(model, slides[0], n_samples=4)  # an AnnData
    scores = sg.evaluate(prediction, slides[0].to_anndata())
    model.save_pretrained(folder + "/model")
    again = sg.SlideModel.from_pretrained(folder + "/model").predict(slides[0])

print(prediction)
print(scores.table()[["pearson", "low", "high", "of_ceiling"]].round(3))
assert (again.X == prediction.X).all()
