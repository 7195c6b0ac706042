package authority

import "cepa/directory"

// applyRules changes a vote as the operator's rules say. They are read anew for each vote; while they cannot be read, the last ones that could
// be hold, so that a slip of the pen lets nobody in.
func (a *Authority) applyRules(v *directory.Vote) {
	if a.cfg.Rules != nil {
		text, err := a.cfg.Rules()
		var rules directory.Rules
		if err == nil {
			rules, err = directory.ParseRules(text)
		}
		if err != nil {
			a.log.Error("the rules for relays are not read; the last ones hold", "error", err)
		} else {
			a.rules = rules
		}
	}
	a.rules.Apply(v.Entries)
}
