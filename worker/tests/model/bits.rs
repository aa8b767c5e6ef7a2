//! The same bits whatever the way.

use tch::{Kind, Tensor};

use crate::{CASES, Case, WAYS, bits};

#[test]
fn recomputing_layers_changes_no_bit() {
    for (name, way) in CASES.iter().flat_map(|name| WAYS.map(|way| (name, way))) {
        let case = Case::load(name);
        let ((kept_losses, kept), (redone_losses, redone)) =
            (case.losses_and_grads(way, false), case.losses_and_grads(way, true));
        assert_eq!(kept_losses, redone_losses, "{} {name}", way.name);
        assert_eq!(bits(&kept), bits(&redone), "{} {name}", way.name);
    }
}

#[test]
fn a_second_run_among_other_allocations_gives_the_same_bits() {
    for way in WAYS {
        let case = Case::load("tied_many_rows");
        let first = case.losses_and_grads(way, false);
        let elsewhere: Vec<_> = (1..40).map(|n| Tensor::zeros([n * 37], (Kind::Float, tch::Device::Cpu))).collect();
        let second = case.losses_and_grads(way, false);
        drop(elsewhere);
        assert_eq!((first.0, bits(&first.1)), (second.0, bits(&second.1)), "{}", way.name);
    }
}

#[test]
fn flat_vectors_at_another_alignment_give_the_same_bits() {
    for (name, way) in CASES.iter().flat_map(|name| WAYS.map(|way| (name, way))) {
        let case = Case::load(name);
        let model = case.model(way, false);
        let (losses, grads) = case.losses_and_grads(way, false);
        let params = case.params(&model);
        let shifted = |t: &Tensor| Tensor::cat(&[Tensor::zeros([1], (Kind::Float, tch::Device::Cpu)), t.copy()], 0);
        let (wide_params, wide_grads) = (shifted(&params), shifted(&params.zeros_like()));
        let (params, moved) = (wide_params.narrow(0, 1, params.size()[0]), wide_grads.narrow(0, 1, params.size()[0]));
        let again =
            model.loss_and_grad(&params, &moved, case.get("tokens"), case.scale(), &|| false).expect("gradients");
        assert_eq!(losses, again, "{name}");
        assert_eq!(bits(&grads), bits(&moved.copy()), "{name}");
    }
}
