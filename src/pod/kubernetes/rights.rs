//! What the credentials may do in the namespace. Without some rights the service works with fewer features.

use futures_util::future::try_join_all;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::PostParams;

use super::client::Api;
use super::features::Feature;
use super::lease;
use crate::pod::PodError;

/// A call that a Role allows.
struct Right {
    group: &'static str,
    resource: &'static str,
    verb: &'static str,
    /// The only object that is meant.
    name: Option<&'static str>,
}

impl Right {
    const fn on(resource: &'static str, verb: &'static str) -> Self {
        Self { group: "", resource, verb, name: None }
    }

    const fn on_lease(verb: &'static str, name: Option<&'static str>) -> Self {
        Self { group: "coordination.k8s.io", resource: "leases", verb, name }
    }
}

/// Without one of these no task can run.
const ESSENTIAL: [Right; 7] = [
    Right::on("pods", "create"),
    Right::on("pods", "get"),
    Right::on("pods", "list"),
    Right::on("pods", "watch"),
    Right::on("pods", "delete"),
    Right::on("secrets", "create"),
    Right::on("secrets", "delete"),
];

/// Each feature, its rights, and what is lost without them.
const FEATURES: [(Feature, &[Right], &str); 4] = [
    (
        Feature::LeaderElection,
        &[
            Right::on_lease("get", Some(lease::NAME)),
            Right::on_lease("create", None),
            Right::on_lease("update", Some(lease::NAME)),
        ],
        "there is no leader election: run one replica",
    ),
    (Feature::Events, &[Right::on("events", "list")], "errors of Pods that do not start lack the cluster's reasons"),
    (
        Feature::SecretOwner,
        &[Right::on("secrets", "patch")],
        "Secrets have no owner: this program deletes them, and the cluster does not; those of a process that was killed while \
         it deleted a Pod stay",
    ),
    (
        Feature::SecretIdentity,
        &[Right::on("secrets", "get")],
        "a Secret is deleted by its name, whichever launch of the task created it",
    ),
];

impl Api {
    /// Examines the rights. Returns a line for each feature that is lost; fails where an essential right is missing.
    pub(super) async fn examine_rights(&self) -> Result<Vec<String>, PodError> {
        let missing = self.missing(&ESSENTIAL).await?;
        if !missing.is_empty() {
            return Err(PodError::Forbidden {
                action: format!("cannot run tasks in namespace {}", self.namespace),
                message: format!("the credentials lack the rights {}", missing.join(", ")),
            });
        }
        let (mut lacking, mut lines) = (Vec::new(), Vec::new());
        for (feature, rights, loss) in FEATURES {
            // With the right to patch a Secret it is identified, too.
            if feature == Feature::SecretIdentity && !lacking.contains(&Feature::SecretOwner) {
                continue;
            }
            let missing = self.missing(rights).await?;
            if !missing.is_empty() {
                lacking.push(feature);
                let missing = missing.join(", ");
                lines.push(format!("no right to {missing} in namespace {}: {loss}", self.namespace));
            }
        }
        self.lacking.set(lacking);
        Ok(lines)
    }

    /// The rights that are missing, as "VERB RESOURCE". None where the API server does not say.
    async fn missing(&self, rights: &[Right]) -> Result<Vec<String>, PodError> {
        let allowed = try_join_all(rights.iter().map(|right| self.is_allowed(right))).await?;
        let missing = rights.iter().zip(allowed).filter(|(_, allowed)| !allowed);
        Ok(missing.map(|(right, _)| format!("{} {}", right.verb, right.resource)).collect())
    }

    async fn is_allowed(&self, right: &Right) -> Result<bool, PodError> {
        let text = |text: &str| Some(text.to_owned());
        let attributes = ResourceAttributes {
            namespace: text(&self.namespace),
            group: text(right.group),
            resource: text(right.resource),
            verb: text(right.verb),
            name: right.name.map(str::to_owned),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), non_resource_attributes: None };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let reviews = kube::Api::<SelfSubjectAccessReview>::all(self.client.clone());
        match self.call("examine the rights", reviews.create(&PostParams::default(), &review)).await {
            Ok(review) => Ok(review.status.is_none_or(|status| status.allowed)),
            // A cluster may refuse the question. Then each call shows whether it is allowed.
            Err(PodError::Forbidden { .. } | PodError::Refused { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }
}
