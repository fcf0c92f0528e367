//! Any order of events and answers.

use proptest::{collection::vec, prelude::*};

use super::world::{Answer, Step, World};

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        8 => Just(Answer::Ok),
        1 => Just(Answer::Lost),
        1 => Just(Answer::Refused),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let (c, n, at) = (0..3usize, 0..2usize, any::<usize>());
    prop_oneof![
        2 => c.clone().prop_map(Step::Open),
        2 => c.clone().prop_map(Step::Close),
        8 => (c.clone(), n.clone(), any::<bool>()).prop_map(|(c, n, b)| Step::Join(c, n, b)),
        4 => (c.clone(), n.clone()).prop_map(|(c, n)| Step::Leave(c, n)),
        1 => n.clone().prop_map(Step::Clear),
        3 => n.clone().prop_map(Step::ClearElsewhere),
        3 => Just(Step::NoticeCleared),
        8 => (c.clone(), n.clone(), 0..3usize).prop_map(|(c, n, h)| Step::Subscribe(c, n, h)),
        4 => (c.clone(), n.clone()).prop_map(|(c, n)| Step::Unsubscribe(c, n)),
        3 => (c.clone(), n.clone()).prop_map(|(c, n)| Step::RemoveElsewhere(c, n)),
        3 => Just(Step::NoticeRemoved),
        2 => any::<bool>().prop_map(Step::Restore),
        2 => (c.clone(), 0..3u8).prop_map(|(c, v)| Step::SetMetadata(c, v)),
        3 => (c.clone(), 0..3u8).prop_map(|(c, v)| Step::SetMetadataElsewhere(c, v)),
        4 => (n.clone(), c.clone()).prop_map(|(n, c)| Step::EventRoom(n, c)),
        2 => c.prop_map(Step::EventAll),
        8 => n.prop_map(Step::Message),
        12 => at.prop_map(Step::Execute),
        20 => (at, answer()).prop_map(|(at, answer)| Step::Answer(at, answer)),
        1 => at.prop_map(Step::AnswerAgain),
    ]
}

proptest! {
    /// The checks are in [`World`]: after every action, after every step, and when all is quiet.
    #[test]
    fn everybody_gets_what_is_theirs(steps in vec(step(), 0..150)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
        }
        world.agree();
        world.everybody_leaves();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn equal_events_give_equal_actions(steps in vec(step(), 0..100)) {
        let log = |steps: &[Step]| {
            let mut world = World::new();
            steps.iter().for_each(|step| world.take(*step));
            world.everybody_leaves();
            world.log
        };
        prop_assert_eq!(log(&steps), log(&steps));
    }
}
