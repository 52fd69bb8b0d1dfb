from stflow_graph_cli.embed import _show_next


def test_slides_without_folds_are_to_be_split_and_others_to_be_trained_on(cohort, tmp_path, capsys):
    _show_next(cohort.root, cohort.embeddings, "toy", [])
    roots = f"--source-dataroot {cohort.root} --embed-dataroot {cohort.embeddings}"
    following = f"next: stflow-graph train {roots} --encoder toy --out RUN"
    assert "".join(capsys.readouterr().out.split()) == "".join(following.split())
    (tmp_path / "prepared" / "patches").mkdir(parents=True)
    _show_next(tmp_path / "prepared", cohort.embeddings, "toy", [])
    following = f"next: stflow-graph split {tmp_path}/prepared --leave-one-out"
    assert "".join(capsys.readouterr().out.split()) == "".join(following.split())
