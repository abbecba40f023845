-- Compile the text of a get_task, and try it on made-up tasks.
-- flags: no-writes
-- keys:
-- args: text
-- returns: what the compiler says is wrong with it; '' if nothing is
--@include policy
--
-- That it fails on what is made up means nothing; that it does not end is seen by who calls.
local policy, wrong = compile_policy(arg.text)
if not policy then return wrong end
local made_up = {}
ask_policy(policy, {}, {'host'}, 'worker', 1)
for i = 1, 3 do made_up[i] = {task = i - 1, key = '', priority = 0, tag = '', bytes = 0} end
ask_policy(policy, made_up, {'host'}, 'worker', 1)
return ''
