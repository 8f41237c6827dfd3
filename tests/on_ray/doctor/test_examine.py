from waver.on_ray.doctor.examine import check_cluster


def test_workers_are_counted_against_the_nodes_of_a_cluster(load_tiny):
    def levels(workers: int, **settings) -> dict[str, str]:
        asked = {"resources.workers": workers, "train.global_batch_size": 2 * workers + 2, **settings}
        return {f.check: f.level for f in check_cluster(load_tiny(**asked), None, None, before="train")}

    # Six CPUs; a worker takes one, and half of one for each of its two loaders.
    assert levels(3) == {"cluster": "ok", "workers": "ok"}
    assert levels(4) == {"cluster": "ok", "workers": "error"}
    assert levels(4, **{"resources.loaders_per_worker": 1}) == {"cluster": "ok", "workers": "ok"}
    assert levels(7, **{"resources.wait_s": 60}) == {"cluster": "ok", "workers": "warning"}
