//! The numbers of transformers, to within each way's tolerance.

use crate::{CASES, Case, WAYS, assert_close};

#[test]
fn logits_and_losses_are_those_of_transformers() {
    for (name, way) in CASES.iter().flat_map(|name| WAYS.map(|way| (name, way))) {
        let case = Case::load(name);
        let model = case.model(way, false);
        let (params, tokens) = (case.params(&model), case.get("tokens"));
        let inputs = tokens.narrow(1, 0, tokens.size()[1] - 1);
        let logits = model.logits(&params, &inputs.contiguous()).expect("logits");
        way.assert_close(&format!("{name} logits"), &logits, case.get("logits"));
        let losses = model.loss(&params, tokens).expect("losses");
        way.assert_losses_close(name, &losses, case.get("losses"));
    }
}

#[test]
fn every_parameters_gradient_is_that_of_transformers() {
    for (name, way) in CASES.iter().flat_map(|name| WAYS.map(|way| (name, way))) {
        let case = Case::load(name);
        let (losses, grads) = case.losses_and_grads(way, false);
        way.assert_losses_close(name, &losses, case.get("losses"));
        for spec in &case.model(way, false).layout().tensors {
            let ours = grads.narrow(0, spec.offset as i64, spec.numel() as i64);
            let theirs = case.get(&format!("grad.{}", spec.name));
            let what = format!("{name} {}", spec.name);
            way.assert_close(&what, &ours.view_as(theirs), theirs);
        }
    }
}

/// On top of ones a gradient is lost where sums are not fp32.
#[test]
fn gradients_are_added_to_what_is_there_in_fp32() {
    for way in WAYS {
        let case = Case::load("untied_kv2_eps5");
        let model = case.model(way, false);
        let params = case.params(&model);
        let grads = params.ones_like();
        model.loss_and_grad(&params, &grads, case.get("tokens"), case.scale(), &|| false).expect("gradients");
        let (_, alone) = case.losses_and_grads(way, false);
        assert_close(way.name, &(&grads - 1.0), &alone, 1e-5);
    }
}
