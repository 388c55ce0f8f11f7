use std::time::{Duration, Instant};

use super::support::{Heard, Namespace, wait_for};
use crate::pod::{Leadership, Pods};

const LASTS: Duration = Duration::from_secs(10);

fn leads(told: &Leadership) -> bool {
    matches!(told, Leadership::Leads { .. })
}

fn follows(told: &Leadership) -> bool {
    matches!(told, Leadership::Follows { .. })
}

#[test]
fn a_second_process_leads_when_the_first_has_died() {
    let Some(namespace) = Namespace::new() else { return };
    let cluster = namespace.cluster();
    let uid = cluster.installation().expect("a lease");
    let (tell, first_heard) = Heard::new();
    let first = cluster.campaign("one", LASTS, Box::new(tell));
    first_heard.until(Duration::from_secs(3), leads);
    let (tell, heard) = Heard::new();
    let second = cluster.campaign("two", LASTS, Box::new(tell));
    let told = heard.until(Duration::from_secs(3), follows);
    assert!(
        matches!(&told[..], [Leadership::Follows { holder: Some(holder) }] if holder.starts_with("one_")),
        "{told:?}"
    );
    // Longer than the Lease lasts: it is renewed.
    std::thread::sleep(LASTS + Duration::from_secs(2));
    assert!(first.leads() && !second.leads());
    let before = namespace.object("lease", "syncctl").expect("the lease")["spec"].clone();
    let died = Instant::now();
    drop(first);
    heard.until(Duration::from_secs(15), leads);
    println!("after a death the second leads within {:.1} s", died.elapsed().as_secs_f64());
    assert!(second.leads());
    let after = namespace.object("lease", "syncctl").expect("the lease")["spec"].clone();
    assert!(after["holderIdentity"].as_str().is_some_and(|holder| holder.starts_with("two_")), "{after}");
    assert_eq!(before["leaseTransitions"], 0);
    assert_eq!(after["leaseTransitions"], 1);
    assert_eq!(after["leaseDurationSeconds"], 10);
    assert!(before["renewTime"].as_str() > before["acquireTime"].as_str(), "{before}");
    assert!(after["acquireTime"].as_str() > before["renewTime"].as_str(), "{after}");
    assert_eq!(cluster.installation().expect("a lease"), uid);
    assert_eq!(cluster.troubles(), 0);
}

#[test]
fn a_second_process_leads_at_once_when_the_first_has_left_in_order() {
    let Some(namespace) = Namespace::new() else { return };
    let cluster = namespace.cluster();
    let (tell, heard) = Heard::new();
    let first = cluster.campaign("same", LASTS, Box::new(tell));
    heard.until(Duration::from_secs(3), leads);
    let (tell, heard) = Heard::new();
    let second = cluster.campaign("same", LASTS, Box::new(tell));
    heard.until(Duration::from_secs(3), follows);
    let left = Instant::now();
    first.release();
    println!("the first has left within {:.2} s", left.elapsed().as_secs_f64());
    let told = heard.until(Duration::from_secs(3), leads);
    println!("the second leads {:.2} s after", left.elapsed().as_secs_f64());
    assert!(matches!(told.last(), Some(Leadership::Leads { term: 1 })), "{told:?}");
    second.release();
    let spec = namespace.object("lease", "syncctl").expect("the lease")["spec"].clone();
    assert_eq!(spec["holderIdentity"].as_str().unwrap_or_default(), "", "{spec}");
}

#[test]
fn a_holder_that_is_cut_off_stops_to_lead_before_another_begins() {
    let Some(namespace) = Namespace::new() else { return };
    let proxy = namespace.proxy();
    let (far, near) = (namespace.cluster_through(&proxy), namespace.cluster());
    let (tell, far_heard) = Heard::new();
    let first = far.campaign("far", LASTS, Box::new(tell));
    far_heard.until(Duration::from_secs(3), leads);
    let (tell, _heard) = Heard::new();
    let second = near.campaign("near", LASTS, Box::new(tell));
    proxy.cut();
    let cut = Instant::now();
    wait_for("the first gives up", Duration::from_secs(8), || (!first.leads()).then_some(()));
    println!("cut off, the first gave up after {:.1} s", cut.elapsed().as_secs_f64());
    assert!(!second.leads());
    wait_for("the second leads", Duration::from_secs(15), || {
        assert!(!first.leads());
        second.leads().then_some(())
    });
    println!("the second led after {:.1} s", cut.elapsed().as_secs_f64());
    let told = far_heard.until(Duration::from_secs(3), |told| matches!(told, Leadership::Follows { holder: None }));
    assert!(told.iter().any(|told| matches!(told, Leadership::Failed(_))), "{told:?}");
    assert!(far.troubles() > 0);
    proxy.mend();
    far_heard.until(Duration::from_secs(8), |told| matches!(told, Leadership::Follows { holder: Some(_) }));
    assert!(second.leads() && !first.leads());
}

#[test]
fn a_lease_that_somebody_deletes_is_made_again() {
    let Some(namespace) = Namespace::new() else { return };
    let cluster = namespace.cluster();
    let (tell, heard) = Heard::new();
    let campaign = cluster.campaign("one", LASTS, Box::new(tell));
    heard.until(Duration::from_secs(3), leads);
    namespace.kubectl(&["delete", "lease", "syncctl", "-n", &namespace.name], "");
    wait_for("the lease is back", Duration::from_secs(8), || {
        let lease = namespace.object("lease", "syncctl")?;
        lease["spec"]["holderIdentity"].as_str().is_some_and(|holder| holder.starts_with("one_")).then_some(())
    });
    assert!(campaign.leads());
}
